"""The usage ledger, prices and invoices."""
