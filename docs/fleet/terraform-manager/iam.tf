data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  arn                = "arn:${data.aws_partition.current.partition}"
  region_and_account = "${data.aws_region.current.name}:${data.aws_caller_identity.current.account_id}"
}

# Only the manager has permissions. Agents need none.
data "aws_iam_policy_document" "manager" {
  # To set the size of the group, to terminate instances whose agent has unregistered, and to complete the hook of an instance after its job.
  statement {
    actions = [
      "autoscaling:SetDesiredCapacity",
      "autoscaling:TerminateInstanceInAutoScalingGroup",
      "autoscaling:CompleteLifecycleAction",
      "autoscaling:RecordLifecycleActionHeartbeat",
    ]
    resources = ["${local.arn}:autoscaling:${local.region_and_account}:autoScalingGroup:*:autoScalingGroupName/${var.name}"]
  }

  # To list the group's instances and failed starts; AWS cannot restrict these to a resource.
  statement {
    actions = [
      "autoscaling:DescribeAutoScalingGroups",
      "autoscaling:DescribeLifecycleHooks",
      "autoscaling:DescribeScalingActivities",
      "ec2:DescribeInstances",
    ]
    resources = ["*"]
  }

  # For `mayfly check`, and for the warnings of the manager's start.
  statement {
    actions = [
      "autoscaling:DescribePolicies",
      "autoscaling:DescribeScheduledActions",
      "ec2:DescribeLaunchTemplateVersions",
    ]
    resources = ["*"]
  }

  # To fetch the tokens, the certificate and its key.
  statement {
    actions = ["ssm:GetParameter"]
    resources = [
      for name in [var.token_parameter, var.fleet_token_parameter, var.certificate_parameter, var.key_parameter] :
      "${local.arn}:ssm:${local.region_and_account}:parameter${name}"
    ]
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

resource "aws_iam_role" "manager" {
  name_prefix        = "${var.name}-manager-"
  assume_role_policy = data.aws_iam_policy_document.instance.json
  tags               = var.tags
}

resource "aws_iam_role_policy" "manager" {
  name   = "manager"
  role   = aws_iam_role.manager.id
  policy = data.aws_iam_policy_document.manager.json
}

resource "aws_iam_instance_profile" "manager" {
  name_prefix = "${var.name}-manager-"
  role        = aws_iam_role.manager.name
  tags        = var.tags
}
