data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  arn                = "arn:${data.aws_partition.current.partition}"
  region_and_account = "${data.aws_region.current.name}:${data.aws_caller_identity.current.account_id}"
}

data "aws_iam_policy_document" "agent" {
  # To terminate the instance, and to protect it while a job runs.
  statement {
    actions = [
      "autoscaling:TerminateInstanceInAutoScalingGroup",
      "autoscaling:SetInstanceProtection",
      "autoscaling:CompleteLifecycleAction",
      "autoscaling:RecordLifecycleActionHeartbeat",
    ]
    resources = ["${local.arn}:autoscaling:${local.region_and_account}:autoScalingGroup:*:autoScalingGroupName/${var.name}"]
  }

  # To detect the group and its hooks; AWS cannot restrict these to a resource.
  statement {
    actions = [
      "autoscaling:DescribeAutoScalingInstances",
      "autoscaling:DescribeLifecycleHooks",
    ]
    resources = ["*"]
  }

  # To fetch the runner token.
  statement {
    actions   = ["ssm:GetParameter"]
    resources = ["${local.arn}:ssm:${local.region_and_account}:parameter${var.token_parameter}"]
  }

  dynamic "statement" {
    for_each = var.token_kms_key_arn == null ? [] : [var.token_kms_key_arn]
    content {
      actions   = ["kms:Decrypt"]
      resources = [statement.value]
    }
  }

  # The managed policy for Session Manager would also allow reading every parameter.
  dynamic "statement" {
    for_each = var.session_manager ? [true] : []
    content {
      actions = [
        "ssm:UpdateInstanceInformation",
        "ssmmessages:CreateControlChannel",
        "ssmmessages:CreateDataChannel",
        "ssmmessages:OpenControlChannel",
        "ssmmessages:OpenDataChannel",
      ]
      resources = ["*"]
    }
  }

  dynamic "statement" {
    for_each = var.cloudwatch_agent ? [true] : []
    content {
      actions = [
        "cloudwatch:PutMetricData",
        "ec2:DescribeTags",
        "ec2:DescribeVolumes",
        "logs:CreateLogGroup",
        "logs:CreateLogStream",
        "logs:DescribeLogGroups",
        "logs:DescribeLogStreams",
        "logs:PutLogEvents",
      ]
      resources = ["*"]
    }
  }
}

data "aws_iam_policy_document" "instance" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "agent" {
  name_prefix        = "${var.name}-"
  assume_role_policy = data.aws_iam_policy_document.instance.json
  tags               = var.tags
}

resource "aws_iam_role_policy" "agent" {
  name   = "agent"
  role   = aws_iam_role.agent.id
  policy = data.aws_iam_policy_document.agent.json
}

resource "aws_iam_instance_profile" "agent" {
  name_prefix = "${var.name}-"
  role        = aws_iam_role.agent.name
  tags        = var.tags
}
