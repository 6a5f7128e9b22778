"""All that is MLflow's: runs, registered versions, who is champion, and what people call them."""
