"""How good a detector is: COCO's numbers, curves, the report, the table of the model zoo. Imports `inference` and all
before it."""
