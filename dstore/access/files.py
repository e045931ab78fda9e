"""Folders of one user alone, and safe ways to read and change the files in them.

A folder is opened by :func:`opened`, which walks the path and refuses folders that another user
decides on. Its files are then opened relative to it, never through a symbolic link. A change is
written beside its place, synced and renamed, so that a reader and a crash find the old file or the
new one, and nothing in between.

Who changes a folder holds a lock of ``flock`` on the folder itself, for which nobody needs to be
able to write there. It ends with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator

from dstore.errors import BadConnectFile, KeyFolderError
from dstore.quoting import quoted
from dstore.runtime import clock, native
from dstore.shm.directory import Directory, Unusable, walk

FOLDER_MODE, FILE_MODE = 0o700, 0o600
LOCK_TIMEOUT = 10.0
"""Seconds to wait for another process that changes the folder."""
LOCK_PAUSE = 0.01
"""Seconds between two tries to lock the folder."""

_NEW = ".new"
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY  # a named pipe must not block
_ADVICE = {
    errno.EACCES: "run this as the user that owns it",
    errno.EPERM: "run this as the user that owns it",
    errno.EROFS: "mount its file system so that it can be written",
    errno.EEXIST: "remove it first",
    errno.ENOENT: "make a key folder with `dstore access init`",
    errno.ENOTDIR: "give the path of a folder",
    errno.ELOOP: "put a regular file, and no symbolic link, in its place",
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there",
}


class PrivateFolder:
    """A folder that is this user's alone, held open by :func:`opened`.

    All methods raise KeyFolderError, whose message is one line that says what to do. Those that
    change something are for the holder of the lock, unless they say otherwise.
    """

    def __init__(self, here: Directory) -> None:
        self.path = here.path
        self._here = here
        self._listing: Directory | None = None

    def __repr__(self) -> str:
        return f"<PrivateFolder {self.path!r}>"

    @property
    def fd(self) -> int:
        """The descriptor to which names are relative."""
        return self._here.fd

    def path_of(self, name: str) -> str:
        """Return the path of a file, as messages name it."""
        return os.path.join(self.path, name)

    def names(self, *, unfinished: bool = False) -> list[str]:
        """Return the names of what is in the folder, sorted: all but the unfinished, or these."""
        try:
            with self._here.listed() as entries:
                found = [entry.name for entry in entries]
        except OSError as error:
            raise cannot(self.path, error) from None
        return sorted(each for each in found if is_unfinished(each) == unfinished)

    def has(self, name: str) -> bool:
        """Whether there is anything with this name."""
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise cannot(self.path_of(name), error) from None
        return True

    def read(self, name: str, most: int) -> bytes:
        """Return the bytes of a file that only this user, or root, can read and write."""
        path = self.path_of(name)
        try:
            file = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=self.fd)
            try:
                check_private(path, os.fstat(file), folder=False)
                return read_whole(file, path, most)
            finally:
                os.close(file)
        except OSError as error:
            raise cannot(path, error) from None

    def sub(self, name: str, *, create: bool = False) -> PrivateFolder:
        """Open a folder in this one. To be closed by :meth:`close`."""
        path = self.path_of(name)
        try:
            if create:
                self._here.make_folder(name)
            inner = self._here.open_folder(name)
            check_private(path, os.fstat(inner.fd), folder=True)
        except OSError as error:
            raise cannot(path, error) from None
        return PrivateFolder(inner)

    def put(self, name: str, data: bytes, *, replace: bool = False) -> None:
        """Create a file with mode 0600 durably, or replace it. Without ``replace`` it must be new.

        At each moment, also after a crash, the file is not there, or has its old bytes, or all of
        the new ones.
        """
        new, path = unfinished(name), self.path_of(name)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new, dir_fd=self.fd)  # of a process that was killed
            try:
                write_new(new, data, dir_fd=self.fd)
                if not replace and self.has(name):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
                os.rename(new, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(new, dir_fd=self.fd)
                raise
            self.sync()
        except OSError as error:
            raise cannot(path, error) from None

    def overwrite(self, name: str, data: bytes) -> None:
        """Write over the same number of bytes in place, which needs no room on a full disk."""
        path = self.path_of(name)
        try:
            file = os.open(name, os.O_WRONLY | _FLAGS, dir_fd=self.fd)
            try:
                check_private(path, os.fstat(file), folder=False)
                os.pwrite(file, data, 0)
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise cannot(path, error) from None

    def rename(self, name: str, to: str) -> None:
        """Rename a file durably; a file with the new name is replaced."""
        try:
            os.rename(name, to, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            self.sync()
        except OSError as error:
            raise cannot(self.path_of(name), error) from None

    def remove(self, name: str) -> None:
        """Remove a file durably."""
        try:
            os.unlink(name, dir_fd=self.fd)
            self.sync()
        except OSError as error:
            raise cannot(self.path_of(name), error) from None

    def tidy(self) -> None:
        """Remove unfinished files, which killed processes have left."""
        for name in self.names(unfinished=True):
            self.remove(name)

    def sync(self) -> None:
        """Make durable which files the folder has. Raises OSError."""
        os.fsync(self._listed().fd)

    @contextlib.contextmanager
    def locked(self, *, shared: bool = False, wait: float = LOCK_TIMEOUT) -> Iterator[None]:
        """Hold the lock of the folder: for a change, or ``shared`` for a look at all of it.

        Waits at most ``wait`` seconds for another process or thread. Any user of the folder may
        call it.
        """
        listing, until = self._listed(), clock.now() + wait
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        while not try_lock(listing.fd, kind, self.path):
            if clock.now() >= until:
                raise KeyFolderError(
                    f"another process has locked the key folder {quoted(self.path)}; wait until "
                    "it has ended, or end it"
                )
            native.sleep(LOCK_PAUSE)
        try:
            yield
        finally:
            # Not by closing: a child that another thread has forked meanwhile has the file, too.
            fcntl.flock(listing.fd, fcntl.LOCK_UN)

    def _listed(self) -> Directory:
        """The folder opened for reading: the descriptor of a walk can be neither synced nor locked.

        Raises KeyFolderError.
        """
        if self._listing is None:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            try:
                self._listing = Directory(os.open(".", flags, dir_fd=self.fd), self.path)
            except OSError as error:
                raise cannot(self.path, error) from None
        return self._listing

    def close(self) -> None:
        """Close the folder. Idempotent."""
        self._here.close()
        if self._listing is not None:
            self._listing.close()

    def __enter__(self) -> PrivateFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def opened(path: str) -> PrivateFolder:
    """Open a folder that must be this user's alone, to be closed. Raises KeyFolderError.

    Each folder on the way to it must belong to this user or to root, and others may not be able to
    write there, unless it is sticky as /tmp is.
    """
    try:
        check_private(path, os.stat(path), folder=True)  # first, for its advice is the better one
        here = walk(os.path.abspath(path))
        check_private(path, os.fstat(here.fd), folder=True)
    except Unusable as error:
        raise KeyFolderError(f"the key folder {quoted(path)} is not safe: {error}") from None
    except OSError as error:
        raise cannot(path, error) from None
    return PrivateFolder(here)


def check_private(path: str, status: os.stat_result, *, folder: bool) -> None:
    """Check that a folder or a regular file is this user's alone. Raises KeyFolderError.

    A file may belong to root as well.
    """
    shown = quoted(path)
    if folder and not stat.S_ISDIR(status.st_mode):
        raise KeyFolderError(f"{shown} is not a folder; give the path of a key folder")
    if not folder and not stat.S_ISREG(status.st_mode):
        raise KeyFolderError(f"{shown} is not a regular file; remove it")
    if status.st_uid not in ({os.geteuid()} if folder else {os.geteuid(), 0}):
        raise KeyFolderError(
            f"{shown} belongs to user {status.st_uid}; run this as that user, or give it to user "
            f"{os.geteuid()} if you trust it (chown)"
        )
    mode, private = stat.S_IMODE(status.st_mode), FOLDER_MODE if folder else FILE_MODE
    if mode & 0o077:
        raise KeyFolderError(
            f"{shown} is open to other users (mode {mode:o}); run `chmod {private:o} {shown}`"
        )


def cannot(path: str, error: OSError) -> KeyFolderError:
    """Return the error that says why a file or folder cannot be used, and what to do."""
    number = error.errno or errno.EIO
    advice = _ADVICE.get(number, "see the log of the system")
    return KeyFolderError(f"{quoted(path)} cannot be used: {os.strerror(number)}; {advice}")


def try_lock(fd: int, kind: int, path: str) -> bool:
    """Take a lock of ``flock``. Returns False if another one has it. Raises KeyFolderError."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise cannot(path, error) from None
    return True


def unfinished(name: str) -> str:
    """Return the name of a file until it is complete."""
    return f".{name}{_NEW}"


def is_unfinished(name: str) -> bool:
    """Whether :func:`unfinished` has returned this name."""
    return name.startswith(".") and name.endswith(_NEW)


def write_new(
    name: str,
    data: bytes,
    *,
    dir_fd: int | None = None,
    mode: int = FILE_MODE,
    owner: tuple[int, int] | None = None,
) -> None:
    """Create a file durably that must not exist. If it fails there is none. Raises OSError.

    ``owner`` are the numbers of its user and group, if they are to be certain ones. The folder is
    not synced.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS
    file = os.open(name, flags, mode & FILE_MODE, dir_fd=dir_fd)
    try:
        try:
            # By its descriptor: who may rename in the folder may have changed what the name is.
            status = os.fstat(file)
            if owner is not None and owner != (status.st_uid, status.st_gid):
                os.fchown(file, *owner)
            if mode != FILE_MODE:
                os.fchmod(file, mode)
            write_all(file, data)
            os.fsync(file)
        finally:
            os.close(file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=dir_fd)
        raise


def write_all(file: int, data: bytes) -> None:
    """Write all bytes. Raises OSError."""
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


def read_whole(file: int, path: str, most: int) -> bytes:
    """Return the bytes of an open file. Raises KeyFolderError if it has more than ``most``."""
    data = b""
    while piece := os.read(file, most + 1 - len(data)):
        data += piece
    if len(data) > most:
        raise damaged(path, f"it has more than {most:,} bytes")
    return data


def damaged(path: str, what: str) -> KeyFolderError:
    """Return the error for a file that dstore has not written like this."""
    return KeyFolderError(
        f"{quoted(path)} is damaged ({what}); restore it from a backup, or remove it"
    )


# ---- connect files, which are in folders of any kind ------------------------------------------


def create_secret(path: str, data: bytes) -> None:
    """Create a file with mode 0600 durably. Raises OSError, FileExistsError if there is one."""
    try:
        write_new(path, data)
        _sync_folder_of(path)
    except OSError as error:
        raise _with_path(error, path) from None


class SecretFile:
    """A connect file that is held open with its folder, by :func:`opened_secret`.

    The folder may be that of another user, who renames and links what he likes in it. So what is
    read, what is replaced, and whose the new file is, all follow from these two descriptors, and
    no name is looked up twice. For one thread.
    """

    def __init__(self, folder: Directory, name: str) -> None:
        """Open the file with this name. Raises OSError, also if it is a symbolic link."""
        self.fd = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=folder.fd)
        self._folder = folder
        self._name = name

    def replace(self, data: bytes) -> None:
        """Replace the file durably and in one step, with its owner and mode.

        Raises OSError, and BadConnectFile if its name is another file's meanwhile.
        """
        status, fd = os.fstat(self.fd), self._folder.fd
        path = os.path.join(self._folder.path, self._name)
        new = unfinished(f"{self._name}-{os.urandom(8).hex()}")
        owner, mode = (status.st_uid, status.st_gid), stat.S_IMODE(status.st_mode)
        try:
            write_new(new, data, dir_fd=fd, mode=mode, owner=owner)
            try:
                # The number of the file is no other file's as long as it is open.
                there = os.stat(self._name, dir_fd=fd, follow_symlinks=False)
                if not os.path.samestat(there, status):
                    raise BadConnectFile(
                        f"{quoted(path)} was replaced by another file while it was changed; it "
                        "stays as it is; see who can write in its folder, and run this again"
                    )
                os.rename(new, self._name, src_dir_fd=fd, dst_dir_fd=fd)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(new, dir_fd=fd)
                raise
            os.fsync(fd)
        except OSError as error:
            raise _with_path(error, path) from None

    def close(self) -> None:
        """Close the file and its folder. To be called once."""
        os.close(self.fd)
        self._folder.close()

    def __enter__(self) -> SecretFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def opened_secret(path: str) -> SecretFile:
    """Open a connect file that may be replaced, to be closed. Raises BadConnectFile.

    Symbolic links are resolved here, once; they stay when the file is replaced.
    """
    try:
        place, name = os.path.split(os.path.realpath(path))
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        folder = Directory(os.open(place, flags), place)
        try:
            return SecretFile(folder, name)
        except BaseException:
            folder.close()
            raise
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise BadConnectFile(f"the connect file {path!r} cannot be read: {why}") from None


def _sync_folder_of(path: str) -> None:
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _with_path(error: OSError, path: str) -> OSError:
    return OSError(error.errno, error.strerror, path)
