"""HTML pages and plots for people; nothing else draws."""
