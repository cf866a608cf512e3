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

function paintTile(draw: CanvasRenderingContext2D, pattern: Pattern, color: string): void {
  draw.fillStyle = color;
  draw.strokeStyle = color;
  const soft = (alpha: number): void => {
    draw.globalAlpha = alpha;
    draw.fillRect(0, 0, TILE, TILE);
    draw.globalAlpha = 1;
  };
  const line = (...points: number[]): void => {
    draw.beginPath();
    for (let at = 0; at + 3 < points.length; at += 4) {
      draw.moveTo(points[at] ?? 0, points[at + 1] ?? 0);
      draw.lineTo(points[at + 2] ?? 0, points[at + 3] ?? 0);
    }
    draw.stroke();
  };
  switch (pattern) {
    case "solid":
      draw.fillRect(0, 0, TILE, TILE);
      break;
    case "vertical":
      soft(0.55);
      draw.fillRect(0, 0, 2, TILE);
      draw.fillRect(4, 0, 2, TILE);
      break;
    case "horizontal":
      soft(0.55);
      draw.fillRect(0, 0, TILE, 2);
      draw.fillRect(0, 4, TILE, 2);
      break;
    case "dots":
      soft(0.35);
      draw.fillRect(1, 1, 2, 2);
      draw.fillRect(5, 5, 2, 2);
      break;
    case "sparse":
      soft(0.3);
      draw.fillRect(3, 3, 2, 2);
      break;
    case "diagonal":
      soft(0.4);
      draw.lineWidth = 2;
      line(-2, 10, 10, -2, -6, 6, 6, -6, 2, 14, 14, 2);
      break;
    case "back":
      soft(0.3);
      draw.lineWidth = 1.5;
      line(-2, -2, 10, 10, -2, 6, 2, 10, 6, -2, 10, 2);
      break;
    case "cross":
      soft(0.4);
      draw.lineWidth = 1.25;
      line(-1, -1, 9, 9, 9, -1, -1, 9);
      break;
    case "checker":
      soft(0.5);
      draw.fillRect(0, 0, 4, 4);
      draw.fillRect(4, 4, 4, 4);
      break;
    case "empty":
      soft(0.16);
      draw.globalAlpha = 0.6;
      draw.fillRect(3.5, 3.5, 1, 1);
      draw.globalAlpha = 1;
      break;
  }
}
