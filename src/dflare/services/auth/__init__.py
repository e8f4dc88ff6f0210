"""Who may do what: organizations, projects, users, tokens, policies, audit."""
