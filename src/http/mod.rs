//! One way to make a request: TLS trust, retries, back-off.
