"""Class names, and what each class consists of: what recipes and folders say, and the map from both to class ids."""
