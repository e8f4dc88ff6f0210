"""The development issuer: an OpenID Connect provider on Authlib's server core."""
