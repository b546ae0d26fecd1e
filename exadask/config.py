from dataclasses import dataclass


@dataclass
class Config:
    kill_grace_s: float = 2.0
    poll_interval_s: float = 0.1
    reserve_after_s: float = 10.0
    inline_bytes: int = 65536
    segment_bytes: int = 2**20

    @classmethod
    def resolve(cls, overrides={}):
        return cls(**overrides)
