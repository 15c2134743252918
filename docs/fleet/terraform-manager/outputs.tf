output "manager_address" {
  description = "Private address of the manager, for the name in manager_url."
  value       = aws_instance.manager.private_ip
}

output "auto_scaling_group" {
  description = "Name of the Auto Scaling group."
  value       = aws_autoscaling_group.pool.name
}
