"""Keys for one run: every connection that leaves a process proves that both ends have them.

One key and one certificate, signed by itself, for scheduler, agents and clients alike. Dask then
talks TLS on every connection and accepts no peer without this certificate.
"""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Any

from distributed.security import Security

_NAME = "exadask-run"
_VALID_DAYS = 400
_CLOCK_MARGIN = dt.timedelta(days=1)
_KEY, _CERTIFICATE = "key.pem", "certificate.pem"


def create_certificates(folder: Path) -> Security:
    """Make the keys of a run, in files that only their owner can read.

    Parameters
    ----------
    folder : Path
        Is made, with mode 0700.

    Returns
    -------
    Security
        What Dask needs to use them; nothing unencrypted is accepted.
    """
    folder.mkdir(mode=0o700)
    key, certificate = _pair()
    for name, text in ((_KEY, key), (_CERTIFICATE, certificate)):
        fd = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(text)
    return load_certificates(folder)


def load_certificates(folder: Path) -> Security:
    """Use the keys that `create_certificates` has made."""
    key, certificate = str(folder / _KEY), str(folder / _CERTIFICATE)
    roles: dict[str, Any] = {}
    for role in ("scheduler", "worker", "client"):
        roles |= {f"tls_{role}_key": key, f"tls_{role}_cert": certificate}
    return Security(tls_ca_file=certificate, require_encryption=True, **roles)


def _pair() -> tuple[bytes, bytes]:
    """Make a private key and its certificate; clocks of nodes may be a day apart."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _NAME)])
    now = dt.datetime.now(dt.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_MARGIN)
        .not_valid_after(now + dt.timedelta(days=_VALID_DAYS))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return private, certificate.public_bytes(serialization.Encoding.PEM)
