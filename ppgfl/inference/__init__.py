"""From images to detections: with weights, with a static graph, with an exported model; and how exports are made.
Imports all wings before it: system, config, weights, model, data, and `build`."""
