"""What happens beside the steps."""
