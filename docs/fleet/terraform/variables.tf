variable "name" {
  description = "Name of the fleet: of its group, its role and its instances."
  type        = string
}

variable "image" {
  description = "Id of an image with the mayfly package."
  type        = string
}

variable "instance_types" {
  description = "Instance types with the architecture of the image. If there are several, the group chooses by price and capacity."
  type        = list(string)
  default     = ["c7i.large"]

  validation {
    condition     = length(var.instance_types) > 0
    error_message = "Name at least one instance type."
  }
}

variable "spot" {
  description = "Use spot instances."
  type        = bool
  default     = false
}

variable "subnets" {
  description = "Ids of the subnets."
  type        = list(string)
}

variable "security_groups" {
  description = "Ids of the security groups. No inbound rule is needed."
  type        = list(string)
}

variable "gitlab_url" {
  description = "URL of GitLab."
  type        = string

  validation {
    condition     = can(regex("^https?://[^\\s\"]+$", var.gitlab_url))
    error_message = "Write a URL, such as https://gitlab.example.com."
  }
}

variable "token_parameter" {
  description = "Name of the SecureString parameter that holds the runner's token."
  type        = string
  default     = "/ci/runner-token"

  validation {
    condition     = can(regex("^(/[A-Za-z0-9_.-]+)+$", var.token_parameter))
    error_message = "The name begins with a slash, such as /ci/runner-token."
  }
}

variable "token_kms_key_arn" {
  description = "ARN of the KMS key of that parameter, if it is a customer managed key."
  type        = string
  default     = null
}

variable "min_size" {
  description = "The minimum number of instances, at least 1: without an instance no agent polls."
  type        = number
  default     = 1

  validation {
    condition     = var.min_size >= 1
    error_message = "min_size must be at least 1: without an instance no agent polls."
  }
}

variable "max_size" {
  description = "The largest number of instances."
  type        = number
  default     = 10
}

variable "schedules" {
  description = "Times at which the minimum number of instances changes, by name."
  type = map(object({
    recurrence = string
    time_zone  = string
    min_size   = number
  }))
  default = {}
}

variable "concurrent" {
  description = "Jobs at once on an instance."
  type        = number
  default     = 1
}

variable "max_builds" {
  description = "Jobs after which an instance is replaced; 0 for no limit."
  type        = number
  default     = 1
}

variable "idle_timeout" {
  description = "Time without a job after which an instance terminates itself."
  type        = string
  default     = "15m"
}

variable "max_age" {
  description = "Age at which an instance is replaced; null for no limit."
  type        = string
  default     = null
}

variable "configuration" {
  description = "The whole config.toml, instead of the one from the variables above. If the image's file has a runner, that file overrides both."
  type        = string
  default     = null
}

variable "root_volume_size" {
  description = "GiB of the root volume; null for the size of the image."
  type        = number
  default     = null
}

variable "root_device_name" {
  description = "Root device of the image; /dev/xvda for Amazon Linux and Debian, /dev/sda1 for Ubuntu and RHEL."
  type        = string
  default     = "/dev/xvda"
}

variable "tags" {
  description = "Tags of all resources, including instances and volumes."
  type        = map(string)
  default     = {}
}

variable "session_manager" {
  description = "Allow shells on instances by Systems Manager Session Manager; the image needs the SSM agent."
  type        = bool
  default     = false
}

variable "cloudwatch_agent" {
  description = "Allow the CloudWatch agent to send logs and metrics; the image needs that agent."
  type        = bool
  default     = false
}
