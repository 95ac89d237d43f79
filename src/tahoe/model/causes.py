"""What an error of a library that reads or writes files means, and what helps: never a cause that was not seen."""

from __future__ import annotations

import errno
import os

# Packages that raise errors of their own where a connection fails.
OF_NETWORKS = {"aiohttp", "azure", "botocore", "gcsfs", "google", "httpx", "requests", "s3fs", "ssl", "urllib3"}
UNLOCKABLE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, getattr(errno, "ENOTSUP", errno.EOPNOTSUPP)}
OF_DISKS = {errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, getattr(errno, "EREMOTEIO", errno.EIO)}
WRITING = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota on that disk is used up",
    errno.EROFS: "the file system is read-only (Read-only file system)",
    errno.EACCES: "you may not write there (Permission denied)",
    errno.EPERM: "you may not write there (Operation not permitted)",
}


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def of_network(error: BaseException) -> bool:
    """Whether a connection failed, rather than what lies at the other end."""
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, TimeoutError | ConnectionError) or package in OF_NETWORKS


def advice(error: BaseException) -> str:
    """What helps where something in a file could not be read; "" if that is not known."""
    text = str(error)
    if of_network(error):
        return "the connection failed; try again, or copy the file here first"
    if isinstance(error, PermissionError):
        return "you may not read it; ask its owner, or `chmod +r`"
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    if isinstance(error, OSError) and error.errno in OF_DISKS:
        return "the disk or the network file system failed; try again, or copy the file elsewhere"
    if "plugin" in text or "filter" in text:
        return "it was compressed by a plugin of HDF5: pip install hdf5plugin, and `import hdf5plugin` before"
    if type(error).__name__ == "UnknownCodecError":
        return "it was compressed by a codec that is not installed here: write it again with anndata's own"
    if "scipy.sparse does not support dtype" in text:
        return (
            'convert the whole before you take a part of it (adata.X = adata.X.astype("float32")); of a file,'
            " tahoe.embed_file reads such numbers for a .zarr output"
        )
    return ""


def advised(message: str, error: BaseException, otherwise: str = "") -> str:
    """A message, with what helps behind it."""
    return "; ".join(filter(None, (message, advice(error) or otherwise)))


def why_not_opened(error: OSError) -> str:
    """Why HDF5 does not open a file that is there, and what helps."""
    text = str(error)
    if is_locked(error):
        return (
            "is locked: a program has it open for writing (a notebook, backed='r+', h5py). Close it there, or work"
            " with a copy. On a file system whose locks do not work, set HDF5_USE_FILE_LOCKING=FALSE"
        )
    if cannot_lock(error):
        return "lies on a file system without locks; set HDF5_USE_FILE_LOCKING=FALSE in the environment"
    if "already open for write" in text:
        return (
            "is marked as open for writing, by a program that goes on or that died. If none does, clear the mark:"
            " h5clear -s FILE (of the HDF5 tools), and see that the file is whole"
        )
    if error.errno or of_network(error):
        return advised(f"cannot be opened ({os.strerror(error.errno) if error.errno else first_line(error)})", error)
    return f"is not a whole HDF5 file ({first_line(error)}); was it copied to the end?"


def is_locked(error: OSError) -> bool:
    """Whether HDF5 does not open a file because another program writes it."""
    return "unable to lock file" in str(error) and not cannot_lock(error)


def cannot_lock(error: OSError) -> bool:
    """Whether a file system has no locks; HDF5 gives the number of the error as text too."""
    return "unable to lock file" in str(error) and (
        error.errno in UNLOCKABLE or any(f"errno = {number}," in str(error) for number in (*UNLOCKABLE, 524))
    )


def why_not_written(error: OSError) -> str:
    """Why a file system refuses to write."""
    if cannot_lock(error):
        return "the file system has no locks; set HDF5_USE_FILE_LOCKING=FALSE in the environment"
    return WRITING.get(error.errno or 0, first_line(error))
