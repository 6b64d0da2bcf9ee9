#!/bin/sh
# Run by Packer inside the booted base disk: a boot loader and no more. The floor that the image's boot is held against.
set -eu
mkdir -p /boot/efi
cat >/etc/default/grub.d/bare.cfg <<'EOT'
GRUB_TIMEOUT=0
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --speed=115200"
GRUB_CMDLINE_LINUX="root=LABEL=root net.ifnames=0 console=ttyS0,115200n8"
GRUB_CMDLINE_LINUX_DEFAULT="quiet"
GRUB_DISABLE_LINUX_UUID=true
EOT
grub-install --target=i386-pc --no-floppy /dev/vda
update-grub
sync
