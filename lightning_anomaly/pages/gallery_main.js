// The page of lists of images.
import { GALLERY_KEYS, Gallery, galleryPage } from "./gallery.js";
import { run } from "./shell.js";

run({ open: Gallery.open, keys: GALLERY_KEYS, pageOf: galleryPage, shown: (gallery) => gallery.update() });
