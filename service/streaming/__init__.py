"""Live streams: a sequence whose frames come as they happen, over WebSocket or JSON Lines."""
