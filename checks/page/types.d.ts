// Types that the page's comments name. Those of answers come from deploy/openapi.json.

import type * as api from "./api";

declare global {
  type Layer = api.LayerDescription;
  type Statistics = api.LayerStatistics;
  type LayerList = api.LayerList;
  type ModelDescription = api.ModelDescription;
  type ModelList = api.ModelList;
  type VersionAnswer = api.VersionAnswer;
  type Preprocessing = api.PreprocessingDescription;

  /** A model with its layers, as `findNetwork` loads it. */
  interface Network {
    name: string;
    version: string;
    digest: string;
    preprocessingDigest: string;
    layers: Layer[];
    byName: Map<string, Layer>;
    totalMacs: number | null;
    stages: string[];
    outputs: string[];
    labels: string[];
    inputs: api.TensorDescription[];
    preprocessing: Preprocessing | null;
    noImageReason: string | null;
  }

  /** A kept image; its sides are 0 where the browser cannot read it. */
  interface KeptImage {
    id: string;
    width: number;
    height: number;
  }

  /** What the page shows, without its address; null until it is loaded. */
  interface Scene {
    networks: api.ModelSummary[];
    network: Network | null;
    photo: KeptImage | null;
    limits: { max_body_bytes?: number };
  }

  /** What the page's address holds. */
  interface View {
    image: string;
    model: string;
    layer: string;
    style: string;
    channel: number | null;
    colormap: string;
    normalize: string;
    vmin: number | null;
    vmax: number | null;
    clip: number;
    combine: string;
    target: number | null;
    image_weight: number;
    sort: string;
    tile: number;
    over: boolean;
    lesson: string;
    pinned: string;
  }

  /** A parameter of a picture, as parameters.js declares it. */
  interface Declared {
    type: string;
    description: string;
    default?: any;
    enum?: string[];
    minimum?: number;
    maximum?: number;
    maxLength?: number;
    examples?: string[];
    "x-styles"?: string[];
  }

  /** [y, x] */
  type Point = number[];
  /** [first, last] of rows and of columns. */
  type Spans = number[][];

  interface Box {
    x: number;
    y: number;
    width: number;
    height: number;
  }

  /** How an image lies in a network's input: input = image * scale + offset. */
  interface Placement {
    scale: Point;
    offset: Point;
    seen: Point;
    photo: Point;
  }

  /** One channel's values, row-major. */
  interface ChannelMap {
    rows: number;
    columns: number;
    values: Float32Array;
  }

  interface Summary {
    low: number;
    high: number;
    mean: number;
    zeros: number;
    largest: number;
    finite: number;
  }

  /** A drawn layer: its scale and colours stand in the PNG itself. */
  interface Picture {
    url: string;
    width: number;
    height: number;
    scale: Record<string, string>;
    palette: Uint8Array | null;
  }

  /** A channel that a figure shows. */
  interface ChannelOf {
    network: Network;
    layer: Layer;
    channel: number;
  }

  /** What a lesson explains; `alive` is false when another one was opened. */
  interface LessonContext extends ChannelOf {
    image: string;
    placement: Placement | null;
    alive: () => boolean;
  }

  interface Block {
    name: string;
    prefix: string;
    layers: Layer[];
  }

  interface Part {
    title: string;
    layers: Layer[];
    blocks: Block[];
  }

  /** A cell [y, x] of a channel that is pointed at. */
  interface Look {
    channel: number;
    cell: Point;
  }

  type Child = Node | string | number | null | undefined | false | Child[];
  type Query = Record<string, string | number | null | undefined | Array<string | number>>;
  type Targeted<E extends Event> = E & { target: HTMLElement };

  // Every element of the page is one of HTML.
  interface ParentNode {
    querySelector(selectors: string): HTMLElement | null;
    querySelectorAll(selectors: string): NodeListOf<HTMLElement>;
  }

  interface Element {
    closest(selectors: string): HTMLElement | null;
  }

  interface Document {
    getElementById(id: "camera" | "help" | "key"): HTMLDialogElement;
    getElementById(id: "file" | "key-field" | "over" | "search"): HTMLInputElement;
    getElementById(id: "model" | "operators"): HTMLSelectElement;
    getElementById(id: "adjust" | "takeaway"): HTMLDetailsElement;
    getElementById(id: "shoot"): HTMLButtonElement;
    getElementById(id: "video"): HTMLVideoElement;
  }
}
