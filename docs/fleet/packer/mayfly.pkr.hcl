# Images with mayfly, git and nftables: Debian 12 and Amazon Linux 2023, for x86_64 and arm64.
#
#   packages/build                                    (TARGET=aarch64-unknown-linux-musl for arm64)
#   packer init docs/fleet/packer
#   packer build -var architecture=x86_64 -var package=target/packages/mayfly_0.1.0_amd64.deb -only 'amazon-ebs.debian' docs/fleet/packer

packer {
  required_version = ">= 1.9"

  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = ">= 1.2.8"
    }
  }
}

variable "region" {
  type    = string
  default = "eu-central-1"
}

variable "architecture" {
  type    = string
  default = "x86_64"

  validation {
    condition     = contains(["x86_64", "arm64"], var.architecture)
    error_message = "Write x86_64 or arm64."
  }
}

variable "package" {
  type        = string
  description = "The .deb for Debian, the .rpm for Amazon Linux, of the same architecture."
}

variable "configuration" {
  type        = string
  default     = ""
  description = "A config.toml for the image. If it has a runner, user data do not replace it. Everyone who can start the image can read a token in it."
}

variable "subnet" {
  type    = string
  default = null
}

locals {
  instance_type = var.architecture == "arm64" ? "t4g.small" : "t3.small"
  debian_name   = var.architecture == "arm64" ? "arm64" : "amd64"
  stamp         = formatdate("YYYYMMDDhhmm", timestamp())
}

source "amazon-ebs" "debian" {
  region        = var.region
  subnet_id     = var.subnet
  instance_type = local.instance_type
  ssh_username  = "admin"
  ami_name      = "mayfly-debian-12-${var.architecture}-${local.stamp}"

  source_ami_filter {
    owners      = ["136693071363"]
    most_recent = true
    filters = {
      name                = "debian-12-${local.debian_name}-*"
      virtualization-type = "hvm"
    }
  }

  metadata_options {
    http_endpoint = "enabled"
    http_tokens   = "required"
  }
}

source "amazon-ebs" "amazon-linux" {
  region        = var.region
  subnet_id     = var.subnet
  instance_type = local.instance_type
  ssh_username  = "ec2-user"
  ami_name      = "mayfly-al2023-${var.architecture}-${local.stamp}"

  source_ami_filter {
    owners      = ["amazon"]
    most_recent = true
    filters = {
      name                = "al2023-ami-2023.*-${var.architecture}"
      virtualization-type = "hvm"
    }
  }

  metadata_options {
    http_endpoint = "enabled"
    http_tokens   = "required"
  }
}

build {
  sources = ["source.amazon-ebs.debian", "source.amazon-ebs.amazon-linux"]

  provisioner "file" {
    source      = var.package
    destination = "/tmp/${basename(var.package)}"
  }

  provisioner "shell" {
    only = ["amazon-ebs.debian"]
    inline = [
      "cloud-init status --wait || true",
      "sudo apt-get update --quiet",
      "sudo DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes git git-lfs nftables /tmp/${basename(var.package)}",
    ]
  }

  provisioner "shell" {
    only = ["amazon-ebs.amazon-linux"]
    inline = [
      "cloud-init status --wait || true",
      "sudo dnf install --quiet --assumeyes git git-lfs nftables /tmp/${basename(var.package)}",
    ]
  }

  # Power the machine off if its agent cannot start.
  provisioner "shell" {
    inline = [
      "sudo mkdir -p /etc/systemd/system/mayfly.service.d",
      "printf '%s\\n' '[Unit]' StartLimitIntervalSec=1h StartLimitBurst=20 StartLimitAction=poweroff '[Service]' RestartSec=15 | sudo tee /etc/systemd/system/mayfly.service.d/give-up.conf",
    ]
  }

  provisioner "shell" {
    environment_vars = ["CONFIGURATION=${base64encode(var.configuration)}"]
    inline = [
      "[ -z \"$CONFIGURATION\" ] || echo \"$CONFIGURATION\" | base64 --decode | sudo install -m 600 /dev/stdin /etc/mayfly/config.toml",
      "sudo mayfly lint --config /etc/mayfly/config.toml",
    ]
  }

  # Remove the state of this machine from the image.
  provisioner "shell" {
    inline = [
      "rm -f /tmp/${basename(var.package)}",
      "sudo sh -c 'rm -rf /var/lib/mayfly/* /var/cache/mayfly/* /etc/mayfly/.runner_system_id /var/log/journal/*'",
      "sudo cloud-init clean --logs",
      "sudo sh -c ': >/etc/machine-id'",
    ]
  }
}
