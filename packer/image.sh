#!/bin/sh
# Run by Packer inside the booted base disk: boot loader, the tree of images/, the agent; then checks, and the seal.
set -eu

say() { printf 'image: %s\n' "$*"; }

say "file tree"
tar -C / --no-same-owner -xf /run/provision.tar tree --strip-components=1
mkdir -p /run/provision /boot/efi
tar -C /run/provision -xf /run/provision.tar checks agent.bundle

say "boot loader"
mount /boot/efi
# --no-nvram, --removable: the disk is for another machine than this one.
grub-install --target=i386-pc --no-floppy /dev/vda
grub-install --target=x86_64-efi --efi-directory=/boot/efi --no-nvram --removable
update-grub
umount /boot/efi

say "units"
systemctl preset-all
systemctl set-default multi-user.target

say "agent"
PYTHONPATH=/usr/lib/narthex python3 -P -m appliance.release install --current /run/provision/agent.bundle
# Byte code holds its source's date: the same in every build, as the bundle's is.
find /opt/narthex /usr/lib/narthex -exec touch --no-dereference --reference=/run/provision/agent.bundle {} +
python3 -m compileall -q /opt/narthex/wheels /usr/lib/narthex

say "accounts"
# No password for anyone; `*`, since sshd without PAM takes `!` for a locked account, keys or not.
sed -i 's/^\([^:]*\):[^:]*:/\1:*:/' /etc/shadow
# A shell that reads no file at its start: sshd runs the one command by it, for every channel.
usermod -s /bin/sh root
usermod -s /usr/sbin/nologin frr # Debian gives it one, for vtysh by ssh

for check in /run/provision/checks/*; do
    say "check ${check##*/}"
    sh "$check" # /run is mounted noexec
done

say "seal"
rm -rf ~/.ssh /etc/systemd/system/packer-network.service /etc/systemd/system/*.wants/packer-network.service
rm -f /etc/ssh/ssh_host_* /var/lib/systemd/random-seed /var/lib/dbus/machine-id /var/lib/systemd/credential.secret
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/lib/cloud /tmp/* /var/tmp/*
rm -rf /etc/ssh/sshd_config.d /boot/grub/grubenv
: >/etc/machine-id # empty: each machine gets its own, and is no first boot that would enable units anew
: >/etc/hostname
find /var/log -mindepth 1 -delete || true
rm -f /etc/.updated /var/.updated # they hold the date of /usr
touch --reference=/run/provision/agent.bundle /usr
/usr/lib/systemd/systemd-update-done
sync
fstrim -a || true
say "sealed"
