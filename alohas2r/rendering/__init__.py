"""Pictures: renderers, randomized looks, corruption, videos."""
