// Colours and dashes of the classes: by a class's place in the model, the same in every chart.
// 42 classes differ in the two together; names stand beside them everywhere.

import { colour } from "./dom.js";

const COLOURS = 7; // --series-0 to --series-6 in style.css
const DASHES = [[], [8, 4], [2, 3], [12, 4, 2, 4], [5, 2], [16, 3, 2, 3, 2, 3]];

/** The colour of a class, for styles of elements. */
export const paint = (place) => `var(--series-${place % COLOURS})`;

/** The colour of a class in the current colour scheme, for a canvas. */
export const stroke = (place) => colour(`series-${place % COLOURS}`);

/** The dashes of a class's line, for a canvas. */
export const dash = (place) => DASHES[place % DASHES.length];

/** The class name (in style.css) of a strip with these dashes. */
export const dashed = (place) => `dash-${place % DASHES.length}`;
