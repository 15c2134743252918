//! Where scripts run: the shell of the instance, later the Docker socket.
