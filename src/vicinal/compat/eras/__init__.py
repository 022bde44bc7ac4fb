"""What each era called things, for any framework: `vicinal.torch.compat` and `vicinal.mlx.compat` use it."""
