variable "name" {
  description = "Name of the fleet: of its group, its roles and its instances."
  type        = string
}

variable "manager_image" {
  description = "Id of an image with the mayfly package and the AWS CLI."
  type        = string
}

variable "manager_instance_type" {
  description = "Type of the manager's instance, with the architecture of its image."
  type        = string
  default     = "t3.small"
}

variable "image" {
  description = "Id of an image with the mayfly package and Docker, for the instances that run jobs."
  type        = string
}

variable "instance_types" {
  description = "Types of these instances, with the architecture of the image, in the order of preference."
  type        = list(string)
  default     = ["c7i.large", "c6i.large"]

  validation {
    condition     = length(var.instance_types) > 0
    error_message = "Name at least one instance type."
  }
}

variable "spot" {
  description = "Use spot instances for jobs. The manager is always an on-demand instance."
  type        = bool
  default     = false
}

variable "max_instances" {
  description = "The largest number of instances that run jobs."
  type        = number
  default     = 20
}

variable "vpc" {
  description = "Id of the VPC."
  type        = string
}

variable "subnets" {
  description = "Ids of the subnets; the manager is in the first one."
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

variable "manager_url" {
  description = "URL of the manager, such as https://manager.example.com:9253. Its host is a name for the manager's address, and must be in the manager's certificate."
  type        = string
}

variable "token_parameter" {
  description = "Name of the SecureString parameter with the runner's token; begins with a slash."
  type        = string
}

variable "fleet_token_parameter" {
  description = "Name of the SecureString parameter with the fleet's token, for the manager."
  type        = string
}

variable "fleet_token" {
  description = "The fleet's token, for the user data of instances; it cannot take jobs from GitLab."
  type        = string
  sensitive   = true
}

variable "certificate_parameter" {
  description = "Name of the parameter with the manager's certificate in PEM."
  type        = string
}

variable "key_parameter" {
  description = "Name of the SecureString parameter with the key of that certificate in PEM."
  type        = string
}

variable "tags" {
  description = "Tags of all resources, including instances and volumes."
  type        = map(string)
  default     = {}
}
