//! Views per theme. A producer that invents theme names must not grow this map (Inv. BOUND): beyond
//! [`THEMES_MAX`] names, views are counted under [`OTHER_THEME`].

use std::collections::HashMap;

use shared::event::{OTHER_THEME, THEMES_MAX};
use shared::field::Name;
use shared::message::{Percentage, ThemeStats};

/// The counts, and their sum.
#[derive(Debug, Default)]
pub(super) struct Themes {
    views: HashMap<Name, u64>,
    total: u64,
}

impl Themes {
    /// Counts a view; tells the theme's numbers, this view included.
    pub(super) fn view(&mut self, theme: &Name) -> ThemeStats {
        let other = other();
        let named = self.views.len() - usize::from(self.views.contains_key(&other));
        let known = self.views.contains_key(theme) || named < THEMES_MAX;
        let counted = if known { theme.clone() } else { other };
        let count = self.views.entry(counted.clone()).or_insert(0);
        *count += 1;
        self.total += 1;
        ThemeStats { theme: counted, count: *count, percentage: Percentage::of(*count, self.total) }
    }
}

fn other() -> Name {
    #[expect(clippy::expect_used, reason = "a constant of the alphabet")]
    Name::parse("theme", Some(OTHER_THEME)).expect("`other` is a name")
}

#[cfg(test)]
mod tests {
    use super::*;

    // Inv. BOUND
    #[test]
    fn themes_beyond_the_bound_are_counted_as_other() {
        let mut themes = Themes::default();
        let name = |i: usize| Name::parse("theme", Some(&format!("t{i}"))).expect("a name");
        for i in 0..THEMES_MAX + 50 {
            themes.view(&name(i));
        }
        assert_eq!(themes.views.len(), THEMES_MAX + 1);
        let stats = themes.view(&name(THEMES_MAX + 7));
        assert_eq!((stats.theme.as_str(), stats.count), (OTHER_THEME, 51));
        assert_eq!(themes.view(&name(0)).count, 2, "a known theme is still counted by its name");
    }
}
