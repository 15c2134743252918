resource "aws_security_group" "agent" {
  name_prefix = "${var.name}-agent-"
  description = "Instances that run jobs; no inbound rule is needed"
  vpc_id      = var.vpc
  tags        = var.tags

  egress {
    from_port   = 0
    to_port     = 0
    protocol    = "-1"
    cidr_blocks = ["0.0.0.0/0"]
  }
}

resource "aws_security_group" "manager" {
  name_prefix = "${var.name}-manager-"
  description = "The manager, reached by its agents only"
  vpc_id      = var.vpc
  tags        = var.tags

  ingress {
    from_port       = 9253
    to_port         = 9253
    protocol        = "tcp"
    security_groups = [aws_security_group.agent.id]
  }

  egress {
    from_port   = 0
    to_port     = 0
    protocol    = "-1"
    cidr_blocks = ["0.0.0.0/0"]
  }
}

resource "aws_instance" "manager" {
  ami                    = var.manager_image
  instance_type          = var.manager_instance_type
  subnet_id              = var.subnets[0]
  vpc_security_group_ids = [aws_security_group.manager.id]
  iam_instance_profile   = aws_iam_instance_profile.manager.name
  tags                   = merge({ Name = "${var.name}-manager" }, var.tags)

  user_data = templatefile("${path.module}/manager.yaml.tftpl", {
    gitlab_url            = var.gitlab_url
    token_parameter       = var.token_parameter
    fleet_token_parameter = var.fleet_token_parameter
    certificate_parameter = var.certificate_parameter
    key_parameter         = var.key_parameter
    max_instances         = var.max_instances
    group                 = var.name
  })

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
}

resource "aws_launch_template" "agent" {
  name_prefix            = "${var.name}-"
  image_id               = var.image
  instance_type          = var.instance_types[0]
  vpc_security_group_ids = [aws_security_group.agent.id]
  update_default_version = true
  tags                   = var.tags

  user_data = base64encode(templatefile("${path.module}/agent.yaml.tftpl", {
    manager_url = var.manager_url
    fleet_token = var.fleet_token
  }))

  # A power-off terminates the instance, so that it costs nothing.
  instance_initiated_shutdown_behavior = "terminate"

  metadata_options {
    http_endpoint = "enabled"
    http_tokens   = "required"
    # With a hop limit of 1 the metadata token does not reach a container.
    http_put_response_hop_limit = 1
  }

  dynamic "tag_specifications" {
    for_each = toset(["instance", "volume"])
    content {
      resource_type = tag_specifications.value
      tags          = merge({ Name = var.name }, var.tags)
    }
  }
}

resource "aws_autoscaling_group" "pool" {
  name                = var.name
  min_size            = 0
  max_size            = var.max_instances
  vpc_zone_identifier = var.subnets
  # The manager alone chooses which instance is terminated.
  protect_from_scale_in     = true
  suspended_processes       = ["AZRebalance"]
  capacity_rebalance        = false
  wait_for_capacity_timeout = "0"

  mixed_instances_policy {
    instances_distribution {
      on_demand_allocation_strategy            = "prioritized"
      on_demand_percentage_above_base_capacity = var.spot ? 0 : 100
      spot_allocation_strategy                 = "price-capacity-optimized"
    }

    launch_template {
      launch_template_specification {
        launch_template_id = aws_launch_template.agent.id
        version            = aws_launch_template.agent.latest_version
      }

      dynamic "override" {
        for_each = var.instance_types
        content {
          instance_type = override.value
        }
      }
    }
  }

  # Gives a job time when the group terminates its instance. The manager extends the hook, and completes it when the job has ended.
  initial_lifecycle_hook {
    name                 = "finish"
    lifecycle_transition = "autoscaling:EC2_INSTANCE_TERMINATING"
    heartbeat_timeout    = 300
    default_result       = "CONTINUE"
  }

  lifecycle {
    # The manager sets the desired capacity.
    ignore_changes = [desired_capacity]
  }
}
