// Written by `make openapi` from service/parameters.py: nothing is changed here.

/**
 * Parameters of a picture as JSON Schema; `x-styles` are the styles that one changes.
 * @type {Record<string, Declared>}
 */
export const DRAWING = {
  "style": {
    "default": "grid",
    "description": "`grid` channels as a mosaic; `channel` one of them; `heatmap` channels combined; `overlay` that on the photograph; `pca` three components as colours; `eigencam` the first component; `cam` evidence for a class",
    "enum": [
      "grid",
      "channel",
      "heatmap",
      "overlay",
      "pca",
      "eigencam",
      "cam"
    ],
    "type": "string"
  },
  "channel": {
    "maximum": 1000000,
    "minimum": 0,
    "type": "integer",
    "description": "For style=channel",
    "x-styles": [
      "channel"
    ]
  },
  "combine": {
    "default": "mean",
    "description": "How heatmap and overlay combine the channels",
    "enum": [
      "mean",
      "max",
      "norm"
    ],
    "type": "string",
    "x-styles": [
      "heatmap",
      "overlay"
    ]
  },
  "normalize": {
    "default": "layer",
    "description": "One scale for the whole layer, one a channel, or vmin and vmax as given",
    "enum": [
      "layer",
      "channel",
      "fixed"
    ],
    "type": "string",
    "x-styles": [
      "grid",
      "channel",
      "heatmap",
      "overlay",
      "eigencam",
      "cam"
    ]
  },
  "vmin": {
    "maximum": 3.4028234663852886e+38,
    "minimum": -3.4028234663852886e+38,
    "type": "number",
    "description": "For normalize=fixed: the value of the darkest colour",
    "x-styles": [
      "grid",
      "channel",
      "heatmap",
      "overlay",
      "eigencam",
      "cam"
    ]
  },
  "vmax": {
    "maximum": 3.4028234663852886e+38,
    "minimum": -3.4028234663852886e+38,
    "type": "number",
    "description": "For normalize=fixed: the value of the brightest colour",
    "x-styles": [
      "grid",
      "channel",
      "heatmap",
      "overlay",
      "eigencam",
      "cam"
    ]
  },
  "clip": {
    "default": 0.0,
    "description": "Percent of the values that saturate",
    "maximum": 99,
    "minimum": 0,
    "type": "number",
    "x-styles": [
      "grid",
      "channel",
      "heatmap",
      "overlay",
      "eigencam",
      "cam"
    ]
  },
  "colormap": {
    "maxLength": 64,
    "type": "string",
    "description": "A name that the package cmap knows",
    "examples": [
      "viridis",
      "inferno",
      "magma",
      "cividis",
      "turbo",
      "gray",
      "gray_r",
      "colorbrewer:RdBu_r",
      "coolwarm",
      "seismic"
    ],
    "x-styles": [
      "grid",
      "channel",
      "heatmap",
      "overlay",
      "eigencam",
      "cam"
    ]
  },
  "columns": {
    "maximum": 4096,
    "minimum": 1,
    "type": "integer",
    "description": "Tiles in a row of the grid",
    "x-styles": [
      "grid"
    ]
  },
  "scale": {
    "maximum": 1024,
    "minimum": 1,
    "type": "integer",
    "description": "Pixels a cell, whole",
    "x-styles": [
      "grid",
      "channel",
      "heatmap",
      "pca",
      "eigencam",
      "cam"
    ]
  },
  "image_weight": {
    "default": 0.5,
    "description": "Weight of the photograph",
    "maximum": 1,
    "minimum": 0,
    "type": "number",
    "x-styles": [
      "overlay",
      "eigencam",
      "cam"
    ]
  },
  "target": {
    "maximum": 10000000,
    "minimum": 0,
    "type": "integer",
    "description": "Class index for style=cam",
    "x-styles": [
      "cam"
    ]
  },
  "format": {
    "default": "png",
    "description": "png is exact, and webp but for pictures without a colormap; jpeg is lossy",
    "enum": [
      "png",
      "webp",
      "jpeg"
    ],
    "type": "string"
  }
};

/** The formats of arrays. */
export const ARRAY_FORMATS = ["npz", "safetensors", "npy", "arrow"];
