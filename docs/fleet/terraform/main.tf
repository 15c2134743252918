locals {
  tags = merge({ Name = var.name }, var.tags)

  configuration = var.configuration != null ? var.configuration : templatefile("${path.module}/config.toml.tftpl", {
    concurrent      = var.concurrent
    max_builds      = var.max_builds
    idle_timeout    = var.idle_timeout
    max_age         = var.max_age
    name            = var.name
    gitlab_url      = var.gitlab_url
    token_parameter = var.token_parameter
  })

  user_data = templatefile("${path.module}/user-data.yaml.tftpl", { configuration = local.configuration })
}

resource "aws_launch_template" "agent" {
  name_prefix = "${var.name}-"
  image_id    = var.image
  # The group names the types if there are several.
  instance_type          = var.instance_types[0]
  vpc_security_group_ids = var.security_groups
  user_data              = base64encode(local.user_data)
  update_default_version = true
  tags                   = var.tags

  # A power-off terminates the instance, so that it costs nothing.
  instance_initiated_shutdown_behavior = "terminate"

  iam_instance_profile {
    arn = aws_iam_instance_profile.agent.arn
  }

  metadata_options {
    http_endpoint = "enabled"
    http_tokens   = "required"
    # With a hop limit of 1 the metadata token does not reach a container.
    http_put_response_hop_limit = 1
  }

  dynamic "block_device_mappings" {
    for_each = var.root_volume_size == null ? [] : [var.root_volume_size]
    content {
      device_name = var.root_device_name
      ebs {
        volume_size           = block_device_mappings.value
        volume_type           = "gp3"
        delete_on_termination = true
      }
    }
  }

  dynamic "tag_specifications" {
    for_each = toset(["instance", "volume"])
    content {
      resource_type = tag_specifications.value
      tags          = local.tags
    }
  }
}

resource "aws_autoscaling_group" "fleet" {
  name                = var.name
  min_size            = var.min_size
  max_size            = var.max_size
  vpc_zone_identifier = var.subnets
  # An agent protects its instance while a job runs; new instances must be unprotected, or they would count as busy.
  protect_from_scale_in = false
  # With capacity rebalancing the group would terminate a spot instance before the interruption; the agent reads the notices itself.
  capacity_rebalance = false
  # The group waits for running jobs, which may take longer than terraform waits.
  wait_for_capacity_timeout = "0"

  mixed_instances_policy {
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

    instances_distribution {
      on_demand_percentage_above_base_capacity = var.spot ? 0 : 100
      spot_allocation_strategy                 = "price-capacity-optimized"
    }
  }

  dynamic "tag" {
    for_each = local.tags
    content {
      key   = tag.key
      value = tag.value
      # The launch template tags instances.
      propagate_at_launch = false
    }
  }

  lifecycle {
    # Agents and schedules change the number of instances.
    ignore_changes = [desired_capacity, min_size]
  }
}

# Gives a running job time when the group terminates its instance. The agent extends the hook, and completes it when the job has ended.
resource "aws_autoscaling_lifecycle_hook" "finish" {
  name                   = "finish"
  autoscaling_group_name = aws_autoscaling_group.fleet.name
  lifecycle_transition   = "autoscaling:EC2_INSTANCE_TERMINATING"
  heartbeat_timeout      = 300
  default_result         = "CONTINUE"
}

resource "aws_autoscaling_schedule" "floor" {
  for_each = var.schedules

  scheduled_action_name  = each.key
  autoscaling_group_name = aws_autoscaling_group.fleet.name
  recurrence             = each.value.recurrence
  time_zone              = each.value.time_zone
  min_size               = each.value.min_size
  max_size               = -1
  desired_capacity       = -1
}
