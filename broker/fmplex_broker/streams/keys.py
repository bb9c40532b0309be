"""Names of keys. Everything of one backbone lives under one hash tag, so that every script stays in one cluster slot.

| key | type, life | content |
|---|---|---|
| `q:<class>:<vfm>` | stream + group `w` | jobs |
| `ready:<class>` | zset | vFMs with undelivered entries, score = virtual start |
| `back` | zset | flows with entries given back (pending under the pseudo-consumer `released`) |
| `vfms` | hash | vFM -> its record, `status=…|version=…|generation=…|…`; `<vfm>:<field>` and `:<field>` hold the rest |
| … `:hosted` | field of it | `fingerprint|description` of what the live workers host |
| … `<vfm>:bytes`, `:bytes`, `:max_bytes` | fields of it | bytes of the jobs of a vFM, of all, and how many these may be |
| … `<vfm>:part:<id>` | field of it, while it is needed | how many jobs need a part |
| … `<vfm>:deaths` | field of it | `version|count|ms of the last`: workers that died while they loaded it |
| `wake` | capped stream | rung when a flow becomes ready or something is given back |
| `leases` | zset | worker -> expiry (server ms); 0 = condemned |
| `held:<worker>` | hash | flows this worker has touched; `#` = its epoch; and what it may die of, in the fields `#…`: |
| … `#run` | field of it | entries of the passes now running, and those that are prepared by themselves |
| … `#new` | field of it | entries that claim number `#claim` brought, and that are prepared together |
| … `#load` | field of it | versions that are being loaded |
| … `#tune` | field of it | the tuning job of which a unit runs: then that alone is to blame |
| … `#place`, `#tunes` | fields of it | where its trainings give the same result; number of its last claim of a tuning job |
| `control` | capped stream | messages to workers: cancellations, changed vFMs |
| `idem:<key>`, `res:<job>`, `blob:<job>`, `rate:<class>:<vfm>` | string + TTL | idempotency, result, large payload, tokens |
| `part:<vfm>:<id>` | string + TTL | what several jobs of a vFM have in common: a schema, a prompt |
| `subs:<job>` | hash + TTL | inboxes that have asked again for a job that is there -> their last attempt |
| `in:<client>`, `dead:<vfm>` | capped stream + TTL | reply inbox; dead letters |
| `stats:<worker>` | string + TTL | the worker's last statistics |
| `tracing` | string + TTL | there while somebody records passes |
| `passes` | capped stream + TTL | what the workers' passes contained, for whoever records them |
| `here:<worker>` | set + TTL | vFMs that are resident on the worker: a hint for claims |
| `offers` | set | vFMs with an offered version that is still being voted on |
| `tune:<job>` | hash, TTL once it has ended | a tuning job: `TuneRecord`, and what scripts need (`lua/tunes.lua`) |
| `tune:<job>:events` | capped stream, likewise | what it says |
| `tunes` | zset | tuning jobs that have not ended -> when they were made (ms) |
| `tunes:unchecked` | zset | those whose files are still to be looked through -> until when somebody does (ms) |
| `tunes:ready` | zset | owners of tuning jobs that wait for a worker -> virtual time |
| `tunes:ready:<owner>` | zset, all scores 0 | those jobs |
| `tunes:clock` | hash | owner -> the last virtual time; `:` -> the present one |
| `tunes:taken` | set | tuning jobs that a worker has in hand |
| `tunes:open:<owner>` | set | tuning jobs of an owner that have not ended |
| `tunes:over` | set | those that have, and hold their files still |
"""

from __future__ import annotations

from fmplex_broker.wire.messages import Flow

# The registry is fleet-wide and lives apart from any backbone's slot.
REGISTRY_BACKBONES = "fmplex:backbones"
REGISTRY_VFMS = "fmplex:vfms"
# Tuning jobs of an owner, all scores 0: `<id> <backbone>`; ids sort by the time they were made.
REGISTRY_TUNES = "fmplex:tunes:"
# Neither do files and batches belong to a backbone: they have a slot of their own, described where it is used.
BATCHES = "{batches}:"
GROUP = "w"
# Fields of the hash `vfms`.
HOSTED = ":hosted"
BYTES, MAX_BYTES = ":bytes", ":max_bytes"


class Keys:
    """Key names of one backbone."""

    def __init__(self, backbone: str) -> None:
        self.backbone = backbone
        self.prefix = f"{{{backbone}}}:"
        self.vfms = self.prefix + "vfms"
        self.wake = self.prefix + "wake"
        self.leases = self.prefix + "leases"
        self.control = self.prefix + "control"
        self.back = self.prefix + "back"
        self.offers = self.prefix + "offers"
        self.tracing = self.prefix + "tracing"
        self.passes = self.prefix + "passes"
        self.tunes_over = self.prefix + "tunes:over"

    def queue(self, flow: Flow) -> str:
        """Return the key of a flow's jobs."""
        return f"{self.prefix}q:{flow.cls}:{flow.vfm}"

    def ready(self, cls: str) -> str:
        """Return the key of a class's vFMs with undelivered jobs."""
        return f"{self.prefix}ready:{cls}"

    def result(self, job: str) -> str:
        """Return the key of a job's stored reply."""
        return f"{self.prefix}res:{job}"

    def idem(self, key: str) -> str:
        """Return the key of what is known under an idempotency key."""
        return f"{self.prefix}idem:{key}"

    def blob(self, job: str) -> str:
        """Return the key of a job's payload if it is large."""
        return f"{self.prefix}blob:{job}"

    def part(self, vfm: str, part: str) -> str:
        """Return the key of a part that jobs of a vFM share."""
        return f"{self.prefix}part:{vfm}:{part}"

    def inbox(self, client: str) -> str:
        """Return the key of a client's reply inbox."""
        return f"{self.prefix}in:{client}"

    def stats(self, worker: str) -> str:
        """Return the key of a worker's statistics."""
        return f"{self.prefix}stats:{worker}"

    def tune(self, job: str) -> str:
        """Return the key of a tuning job's record."""
        return f"{self.prefix}tune:{job}"

    def here(self, worker: str) -> str:
        """Return the key of the vFMs that are resident on a worker."""
        return f"{self.prefix}here:{worker}"
