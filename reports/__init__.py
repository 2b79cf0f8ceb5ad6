"""What people look at: tables, figures and pages made from the rows of finished runs."""
