"""What every service needs and none owns: no domain in here."""
