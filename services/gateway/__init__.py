"""gateway: HTTP and WebSocket for browsers; writes events to Kafka, owns no state but memory."""
