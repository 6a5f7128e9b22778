"""What people look at: one page that shows how good a model is, films of its cases, and its card."""
