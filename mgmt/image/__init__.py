"""The system VM image: base disk, Packer, artifacts, cache. Builds on this machine: mmdebstrap, QEMU, Packer."""
