"""What is made of runs to look at: report.html, the interactive folder, single figures, comparison, event files."""
