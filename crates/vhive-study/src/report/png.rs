//! PNG from SVG, with a font of the host's.

use std::path::Path;

use resvg::{tiny_skia, usvg};

/// Where hosts keep the faces that the charts ask for.
const FONTS: [&str; 8] = [
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/truetype/dejavu/DejaVuSans-Bold.ttf",
    "/usr/share/fonts/truetype/dejavu/DejaVuSans-Oblique.ttf",
    "/usr/share/fonts/dejavu-sans-fonts/DejaVuSans.ttf",
    "/usr/share/fonts/dejavu-sans-fonts/DejaVuSans-Bold.ttf",
    "/usr/share/fonts/TTF/DejaVuSans.ttf",
    "/usr/share/fonts/TTF/DejaVuSans-Bold.ttf",
    "/usr/share/fonts/truetype/liberation/LiberationSans-Regular.ttf",
];

/// Pixels of the picture per pixel of the chart.
const ENLARGED: f32 = 2.0;

/// Renders charts.
#[derive(Debug)]
pub(super) struct Renderer(usvg::Options<'static>);

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum PngError {
    /// A chart without its text would mislead.
    #[error("no PNG files: none of the fonts DejaVu Sans and Liberation Sans is installed")]
    NoFont,
    /// The chart is no SVG that can be drawn.
    #[error("cannot draw the chart")]
    Draw(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The picture would be too large.
    #[error("a chart of {0} by {1} pixels is too large for a picture")]
    Size(u32, u32),
}

impl Renderer {
    /// Finds a font.
    ///
    /// # Errors
    /// [`PngError::NoFont`].
    pub(super) fn new() -> Result<Self, PngError> {
        let mut options = usvg::Options::default();
        let fonts = options.fontdb_mut();
        for path in FONTS.map(Path::new) {
            if let Ok(data) = std::fs::read(path) {
                fonts.load_font_data(data);
            }
        }
        let family = fonts.faces().next().and_then(|face| face.families.first()).cloned();
        let (family, _) = family.ok_or(PngError::NoFont)?;
        fonts.set_sans_serif_family(&family);
        options.font_family = family;
        Ok(Self(options))
    }

    /// The picture of a chart.
    ///
    /// # Errors
    /// When it cannot be drawn.
    pub(super) fn png(&self, svg: &str) -> Result<Vec<u8>, PngError> {
        let tree = usvg::Tree::from_str(svg, &self.0).map_err(|e| PngError::Draw(Box::new(e)))?;
        let size = tree.size().to_int_size();
        let size = size.scale_by(ENLARGED).unwrap_or(size);
        let (width, height) = (size.width(), size.height());
        let mut map = tiny_skia::Pixmap::new(width, height)
            .filter(|_| u64::from(width) * u64::from(height) < 1 << 28)
            .ok_or(PngError::Size(width, height))?;
        let enlarged = tiny_skia::Transform::from_scale(ENLARGED, ENLARGED);
        resvg::render(&tree, enlarged, &mut map.as_mut());
        map.encode_png().map_err(|error| PngError::Draw(Box::new(error)))
    }
}
