"""What the stages share: records, tracking, the connection to Ray."""
