"""Whether a folder lies on a disk that machines share, where neither SQLite nor file locks can be relied on."""

from __future__ import annotations

from pathlib import Path

from privshard.core.errors import ResourceError

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = frozenset({
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "afs", "ocfs2", "gfs2"),
    *("fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.goofys", "fuse.mount-s3", "fuse.glusterfs", "fuse.rclone"),
    *("fuse.juicefs", "fuse.cephfs"),
})  # fmt: skip


def network_filesystem(folder: Path) -> str | None:
    """The type of the network filesystem that `folder` is, or will be, on; None for a local one, or where the system
    doesn't tell."""
    try:
        lines = _MOUNTS.read_text().splitlines()
    except OSError:
        return None
    place, deepest, kind = folder.resolve(), -1, None
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        mounted = Path(fields[4].encode().decode("unicode_escape"))
        if place.is_relative_to(mounted) and len(mounted.parts) >= deepest:  # a later mount hides an earlier one
            deepest, kind = len(mounted.parts), after.split()[0]
    return kind if kind in _NETWORK else None


def refuse_shared_disk(folder: Path) -> None:
    """ResourceError where a ledger in a file would lie on a disk that machines share."""
    kind = network_filesystem(folder)
    if kind is not None:
        raise ResourceError(
            f"Expected a local disk for the ledger file in {folder}, which is on a shared one ({kind}): SQLite's locks "
            "don't hold there.",
            remedy="Give ledger: postgresql://… in the recipe, or train into a folder on a local disk.",
        )
