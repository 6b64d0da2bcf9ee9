"""Which passwords were given: for each guest that has acknowledged one a file of the guest's id, with the password's
id in it. A part of the metadata service (metadata_service.py).

The password itself is in none of them, and a router of two may copy them to the other as they are.
"""

from __future__ import annotations

import os

from router.metadata_guest import Guest


class Given:
    """The files in `folder`. It is opened at once, by root: the folders above it are closed to the service's account.

    Raises OSError where it is not there.
    """

    def __init__(self, folder: str) -> None:
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._sent: dict[str, str] = {}  # the password that each guest was sent last

    def ask(self, guest: Guest, request: str) -> str:
        """What a guest's request is answered. Raises OSError where an acknowledgement can't be kept."""
        name, password, ident = guest.text("id"), guest.text("password"), guest.text("password_id")
        is_due = bool(password) and self._acknowledged(name) != ident
        if request == "send_my_password":
            if is_due:
                self._sent[name] = ident
            return password if is_due else "saved_password"
        if request == "saved_password":
            if is_due and self._sent.get(name, ident) == ident:  # else it is the one before that has come to it
                self._keep(name, ident)
            return "saved_password"
        return "bad_request"

    def _acknowledged(self, guest: str) -> str:
        try:
            fd = os.open(guest, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
        except FileNotFoundError:
            return ""
        try:
            return os.read(fd, 256).decode().strip()
        finally:
            os.close(fd)

    def _keep(self, guest: str, ident: str) -> None:
        """After a crash it is the old one or the new."""
        new = f".{guest}"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644, dir_fd=self._folder)
        try:
            os.fchmod(fd, 0o644)  # the folder is closed; who may be there may read it, whatever our umask
            os.write(fd, f"{ident}\n".encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(new, guest, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        os.fsync(self._folder)

    def sweep(self, known: set[str], absent: set[str]) -> set[str]:
        """Remove the files of guests that are gone now and were `absent` before: a push may be undone, and bring them
        back. Returns who is absent now."""
        gone = {name for name in os.listdir(self._folder) if name not in known and not name.startswith(".")}
        for name in gone & absent:
            os.unlink(name, dir_fd=self._folder)
        return gone - absent
