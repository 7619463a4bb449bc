"""What a trained model is used for. Each use asks for answers of ``models.Model``, in nats."""
