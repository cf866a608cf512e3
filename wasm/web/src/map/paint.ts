/** Colours and patterns on a canvas. */

import type { Kind, Pattern } from "../kinds.ts";

const TILE = 8;

/** Fill styles for kinds, in the colours that the style sheet gives them now. */
export class Palette {
  readonly fills: (CanvasPattern | string)[];
  readonly ground: string;
  readonly ink: string;
  readonly select: string;

  constructor(context: CanvasRenderingContext2D, element: Element, kinds: readonly Kind[], scale: number) {
    const style = getComputedStyle(element);
    const color = (name: string): string => style.getPropertyValue(name).trim() || "#888";
    this.ground = color("--map-ground");
    this.ink = color("--ink");
    this.select = color("--select");
    this.fills = kinds.map((kind) => fill(context, kind.pattern, color(kind.color), this.ground, scale));
  }
}

/** A repeating tile; sizes are in CSS pixels, whatever the density of the screen. */
function fill(
  context: CanvasRenderingContext2D,
  pattern: Pattern,
  color: string,
  ground: string,
  scale: number,
): CanvasPattern | string {
  const size = Math.round(TILE * scale);
  const tile = document.createElement("canvas");
  tile.width = size;
  tile.height = size;
  const draw = tile.getContext("2d");
  if (draw === null) {
    return color;
  }
  draw.scale(size / TILE, size / TILE);
  draw.fillStyle = ground;
  draw.fillRect(0, 0, TILE, TILE);
  paintTile(draw, pattern, color);
  return context.createPattern(tile, "repeat") ?? color;
}

/** A pattern: the colour thinly over the tile, and boxes or lines in full strength over that. */
interface Marks {
  /** How strong the thin colour is, from 0 to 1. */
  readonly soft: number;
  /** Left, top, width, height of each. */
  readonly boxes?: readonly (readonly [number, number, number, number])[];
  /** How strong the boxes are; 1 if it is not said. */
  readonly strength?: number;
  /** Both ends of each. */
  readonly lines?: readonly (readonly [number, number, number, number])[];
  readonly width?: number;
}

const PATTERNS: Readonly<Record<Pattern, Marks>> = {
  solid: { soft: 1 },
  vertical: { soft: 0.55, boxes: [[0, 0, 2, TILE], [4, 0, 2, TILE]] },
  horizontal: { soft: 0.55, boxes: [[0, 0, TILE, 2], [0, 4, TILE, 2]] },
  dots: { soft: 0.35, boxes: [[1, 1, 2, 2], [5, 5, 2, 2]] },
  sparse: { soft: 0.3, boxes: [[3, 3, 2, 2]] },
  diagonal: { soft: 0.4, width: 2, lines: [[-2, 10, 10, -2], [-6, 6, 6, -6], [2, 14, 14, 2]] },
  back: { soft: 0.3, width: 1.5, lines: [[-2, -2, 10, 10], [-2, 6, 2, 10], [6, -2, 10, 2]] },
  cross: { soft: 0.4, width: 1.25, lines: [[-1, -1, 9, 9], [9, -1, -1, 9]] },
  checker: { soft: 0.5, boxes: [[0, 0, 4, 4], [4, 4, 4, 4]] },
  empty: { soft: 0.16, strength: 0.6, boxes: [[3.5, 3.5, 1, 1]] },
};

function paintTile(draw: CanvasRenderingContext2D, pattern: Pattern, color: string): void {
  const { soft, boxes = [], strength = 1, lines = [], width = 1 } = PATTERNS[pattern];
  draw.fillStyle = color;
  draw.strokeStyle = color;
  draw.globalAlpha = soft;
  draw.fillRect(0, 0, TILE, TILE);
  draw.globalAlpha = strength;
  boxes.forEach((box) => draw.fillRect(...box));
  draw.lineWidth = width;
  draw.beginPath();
  for (const [fromX, fromY, toX, toY] of lines) {
    draw.moveTo(fromX, fromY);
    draw.lineTo(toX, toY);
  }
  draw.stroke();
  draw.globalAlpha = 1;
}
