"""What every command needs: errors, messages, files, progress, starting TensorFlow."""
