"""What is known of machine rooms: one TOML file each, with source and date of every fact."""
