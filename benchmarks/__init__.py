"""What ADD costs at full size: counted on any machine, measured on the one at hand."""
