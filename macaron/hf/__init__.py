"""What any model for transformers needs: nothing here knows which one."""
