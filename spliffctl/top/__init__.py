"""The full-screen view. textual is imported in here and nowhere else, and only when the view is started."""
