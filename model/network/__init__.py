"""The recurrent network: layers, cost, and the loop over time of the export."""
