# Stage two of the image: boots the base disk that stage one made, installs the boot loader from inside, puts in what
# images/ says and the agent, checks, and seals. `./narthex image build` gives the variables; Packer 1.6 or later.

variable "base" {
  type        = string
  description = "The base disk, raw, with the partitions of images/partitions."
}

variable "kernel" {
  type        = string
  description = "Its kernel: there is no boot loader yet."
}

variable "initrd" {
  type        = string
  description = "Its initramfs."
}

variable "key" {
  type        = string
  description = "The private key of this build, whose public half stage one left on the disk."
}

variable "provision" {
  type        = string
  description = "A tar of what goes into the image, or of nothing for the bare Debian."
}

variable "script" {
  type        = string
  description = "What is run inside: packer/image.sh, or packer/bare.sh."
}

variable "disk_size" {
  type    = string
  default = "2048M"
}

variable "accelerator" {
  type    = string
  default = "kvm"
}

variable "cpus" {
  type    = string
  default = "2"
}

variable "console" {
  type        = string
  description = "The file that gets the serial console."
}

variable "output" {
  type = string
}

source "qemu" "narthex" {
  accelerator      = var.accelerator
  disk_image       = true
  iso_url          = var.base
  iso_checksum     = "none"
  format           = "raw"
  disk_interface   = "virtio"
  disk_discard     = "unmap"
  disk_cache       = "unsafe"
  skip_compaction  = true
  net_device       = "virtio-net"
  headless         = true
  cpus             = var.cpus
  memory           = 1024
  disk_size        = var.disk_size
  disable_vnc      = true
  boot_wait        = "100ms"
  output_directory = var.output
  vm_name          = "disk.raw"
  # Its own, and not those of the person who builds.
  ssh_username         = "root"
  ssh_private_key_file = var.key
  ssh_timeout          = "10m"
  shutdown_command     = "systemctl poweroff"
  shutdown_timeout     = "3m"
  qemuargs = [
    ["-cpu", "max"],
    ["-kernel", var.kernel],
    ["-initrd", var.initrd],
    ["-append", "root=LABEL=root rw console=ttyS0 net.ifnames=0 quiet systemd.show_status=0"],
    ["-serial", "file:${var.console}"],
    ["-device", "virtio-rng-pci"],
  ]
}

build {
  sources = ["source.qemu.narthex"]

  provisioner "file" {
    source      = var.provision
    destination = "/run/provision.tar"
  }

  provisioner "shell" {
    script = var.script
  }
}
