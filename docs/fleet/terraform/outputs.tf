output "auto_scaling_group" {
  description = "Name of the Auto Scaling group."
  value       = aws_autoscaling_group.fleet.name
}

output "role" {
  description = "Name of the instances' role, to attach further policies."
  value       = aws_iam_role.agent.name
}
